"""Networks for scikit-learn, trained by any optimizer: ``fastopt.sklearn.MLPClassifier()``."""

from fastopt.interop.sklearn import MLPClassifier as MLPClassifier
from fastopt.interop.sklearn import MLPRegressor as MLPRegressor
